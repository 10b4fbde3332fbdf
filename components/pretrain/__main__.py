"""`python -m components.pretrain`: run the stage in the current directory."""

from stagecraft.contract.runner import cli

if __name__ == "__main__":
    cli("pretrain")
