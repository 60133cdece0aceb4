"""`python -m ecgformers` is the command `ecgformers`."""

from ecgformers.command_line import main

if __name__ == "__main__":
    main()
