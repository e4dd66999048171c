"""Scripts that let a shell complete verbs and options with the Tab key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SHELLS = ("bash", "zsh", "fish")

_BASH = """\
# ccfnet-tf: completion for bash. To have it in every shell:
#   ccfnet-tf completion bash > ~/.local/share/bash-completion/completions/ccfnet-tf
_ccfnet_tf() {
    local word="${COMP_WORDS[COMP_CWORD]}" verb="${COMP_WORDS[1]}" words=""
    if [ "$verb" = data ] && [ "$COMP_CWORD" -gt 1 ]; then
        [ "$COMP_CWORD" -eq 2 ] && verb="data" || verb="data ${COMP_WORDS[2]}"
    fi
    [ "$COMP_CWORD" -eq 1 ] && verb=""
    case "$verb" in
CASES
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _ccfnet_tf ccfnet-tf
"""

_ZSH = """\
# ccfnet-tf: completion for zsh. To have it in every shell, put this into ~/.zshrc:
#   source <(ccfnet-tf completion zsh)
autoload -U +X compinit && compinit
autoload -U +X bashcompinit && bashcompinit
"""


def script(shell: str, words: Mapping[str, Sequence[str]]) -> str:
    """Returns what the shell is to be given.

    Args:
        shell: One of `SHELLS`.
        words: What may follow, by verb (`fit`, `data check`); `` has the verbs.
    """
    if shell == "fish":
        return _fish(words)
    cases = "\n".join(
        f"        '{verb}') words='{' '.join(each)}' ;;" for verb, each in words.items()
    )
    return (_ZSH if shell == "zsh" else "") + _BASH.replace("CASES", cases)


def _fish(words: Mapping[str, Sequence[str]]) -> str:
    lines = [
        "# ccfnet-tf: completion for fish. To have it in every shell:",
        "#   ccfnet-tf completion fish > ~/.config/fish/completions/ccfnet-tf.fish",
        f"complete -c ccfnet-tf -n __fish_use_subcommand -f -a '{' '.join(words[''])}'",
    ]
    for verb, each in words.items():
        first, _, second = verb.partition(" ")
        when = f"__fish_seen_subcommand_from {first}"
        if second:
            when += f"; and __fish_seen_subcommand_from {second}"
        options = [word for word in each if word.startswith("--")]
        plain = [word for word in each if not word.startswith("-")]
        if verb and plain:
            lines.append(f"complete -c ccfnet-tf -n '{when}' -f -a '{' '.join(plain)}'")
        lines += [f"complete -c ccfnet-tf -n '{when}' -l {word[2:]}" for word in options]
    return "\n".join(lines) + "\n"
