"""What a server would refuse in a model repository, said beforehand."""
