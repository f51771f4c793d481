"""Studies of this repository: one paper's or one question's figures and tables each."""
