"""The command line: reads arguments, calls the other rooms and prints what they return."""

from segcredit.cli.commands import app as app
from segcredit.cli.commands import out as out
from segcredit.cli.entry_point import main as main
