"""`python -m bench`: the same program as the console script `razorbench`."""

from bench.cli.main import main

if __name__ == "__main__":
    main()
