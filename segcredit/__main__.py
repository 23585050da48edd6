"""``python -m segcredit``: the command line, as launchers such as torchrun start it."""

from segcredit.cli import main

if __name__ == "__main__":
    main()
