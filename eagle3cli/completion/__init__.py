"""What the shells offer at the Tab key: a line taken apart, the values of its flags, and the scripts. Never torch."""
