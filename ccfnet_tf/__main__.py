"""`python -m ccfnet_tf` is `ccfnet-tf`."""

import sys

from ccfnet_tf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
