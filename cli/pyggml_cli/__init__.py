"""The commands, one a module. `python -m pyggml_cli.NAME` imports this package first, which is when Ctrl-C gets the action that it has
while commands are imported (start.py); sys.argv begins with "-m" until then."""

import sys

if sys.argv[:1] == ["-m"] and any("pyggml_cli." in word for word in sys.orig_argv):
    from pyggml_cli.start import plain_ctrl_c

    plain_ctrl_c()
