"""What every task and architecture computed when it was written down: ``goldens.json``.

``recipe.py`` makes a small corpus, gives the commands and collects their numbers; ``write.py``
keeps them; ``tests/test_goldens.py`` compares. A change that moves a number on purpose writes the
table anew in the same commit, which says why:

    python -m tests.goldens.write
"""
