"""`python -m privimage` is the `privimage` command."""

from privimage.cli import main

main()
