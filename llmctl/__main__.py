"""``python -m llmctl``: the same program as the ``llmctl`` command."""

from llmctl.cli.streams import main

if __name__ == "__main__":
    main()
