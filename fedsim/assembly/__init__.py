"""From the parts that a user gave, through checks and rehearsals, to a run that can start."""
