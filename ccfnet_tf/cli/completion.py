"""`ccfnet-tf completion`: prints a shell completion script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ccfnet_tf.cli import (
    benchmark,
    calibrate,
    compare,
    data,
    evaluate,
    export,
    predict,
    presets,
    rank,
    report,
    reproduce,
    serve,
)
from ccfnet_tf.cli.argument_parser import Parser, option_names
from ccfnet_tf.cli.fit_options import fit_options
from ccfnet_tf.cli.main import VERBS
from ccfnet_tf.errors import EXIT_DONE

SHELLS = ("bash", "zsh", "fish")
ALWAYS = ("--quiet", "--debug")
"""Options of every command."""

_BASH = """\
# bash completion for ccfnet-tf. To enable it permanently:
#   ccfnet-tf completion bash > ~/.local/share/bash-completion/completions/ccfnet-tf
_ccfnet_tf() {
    local word="${COMP_WORDS[COMP_CWORD]}" at=1 words="" verb
    while [ "$at" -lt "$COMP_CWORD" ] && [[ "${COMP_WORDS[at]}" == --* ]]; do at=$((at + 1)); done
    verb="${COMP_WORDS[at]}"
    [ "$verb" = data ] && [ "$COMP_CWORD" -gt $((at + 1)) ] && verb="data ${COMP_WORDS[at + 1]}"
    [ "$COMP_CWORD" -eq "$at" ] && verb=""
    case "$verb" in
CASES
    esac
    # Options after a dash; otherwise other words, or with `-o default` file names.
    [[ "$word" == -* ]] || words=$(printf '%s\n' $words | grep -v '^-')
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _ccfnet_tf ccfnet-tf
"""

_ZSH = """\
# zsh completion for ccfnet-tf. To enable it permanently, add this line to ~/.zshrc:
#   source <(ccfnet-tf completion zsh)
(( $+functions[compdef] )) || { autoload -U +X compinit && compinit; }
autoload -U +X bashcompinit && bashcompinit
"""

_FISH = """\
# fish completion for ccfnet-tf. To enable it permanently:
#   ccfnet-tf completion fish > ~/.config/fish/completions/ccfnet-tf.fish
function __ccfnet_tf_words
    set -l words (commandline -opc)
    set words[1] ccfnet-tf
    string match -v -- '--*' $words
end
function __ccfnet_tf_at
    set -l words (__ccfnet_tf_words)
    test "$words" = (string join ' ' ccfnet-tf $argv)
end
function __ccfnet_tf_after
    set -l words (__ccfnet_tf_words)
    set -l last (math 1 + (count $argv))
    test "$words[1..$last]" = (string join ' ' ccfnet-tf $argv)
end"""


def main(args: list[str]) -> int:
    """Prints the completion script of a shell; returns the exit code."""
    shell = new_parser().parse_args(args).shell
    print(script(shell, _words()), end="")
    return EXIT_DONE


def new_parser() -> Parser:
    """Returns the argument parser of the command."""
    parser = Parser(
        prog="ccfnet-tf completion",
        description="Print a script for completion of commands and options with the Tab key. To "
        'enable it in the current shell only: eval "$(ccfnet-tf completion bash)".',
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


def _words() -> dict[str, list[str]]:
    """Returns the words that may follow each command; the key `` holds the commands."""
    modules = (
        evaluate,
        calibrate,
        report,
        compare,
        predict,
        rank,
        reproduce,
        export,
        serve,
        benchmark,
        presets,
    )
    parsers = {module.__name__.rpartition(".")[2]: module.new_parser() for module in modules}
    words = {verb: [*option_names(parser), *ALWAYS] for verb, parser in parsers.items()}
    words |= {verb: [*fit_options(), *ALWAYS] for verb in ("fit", "crossval")}
    keys = [key for key in fit_options() if key.startswith("--data.") or key == "--seed"]
    for verb, new_data_parser in data.PARSERS.items():
        own = option_names(new_data_parser())
        words[f"data {verb}"] = [*own, *(keys if "--config" in own else []), *ALWAYS]
    words |= {"": [*VERBS, "--help", "--version", *ALWAYS]}
    return words | {"data": list(data.PARSERS), "completion": list(SHELLS)}


def script(shell: str, words: Mapping[str, Sequence[str]]) -> str:
    """Returns the completion script of a shell.

    Args:
        shell: One of `SHELLS`.
        words: Words that may follow each command (`fit`, `data check`); the key `` holds the
            commands.
    """
    if shell == "fish":
        return _fish(words)
    cases = "\n".join(
        f"        '{verb}') words='{' '.join(each)}' ;;" for verb, each in words.items()
    )
    return (_ZSH if shell == "zsh" else "") + _BASH.replace("CASES", cases)


def _fish(words: Mapping[str, Sequence[str]]) -> str:
    lines = [_FISH]
    for verb, each in words.items():
        options = [word[2:] for word in each if word.startswith("--")]
        plain = " ".join(word for word in each if not word.startswith("-"))
        if plain:  # Commands or their subcommands; no file names.
            lines.append(f"complete -c ccfnet-tf -n '__ccfnet_tf_at {verb}' -f -a '{plain}'")
        where = f"__ccfnet_tf_after {verb}" if verb else "__ccfnet_tf_at"  # --version
        lines += [f"complete -c ccfnet-tf -n '{where}' -l {option}" for option in options]
    return "\n".join(lines) + "\n"
