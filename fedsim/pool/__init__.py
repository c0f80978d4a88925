"""Who computes, and in which pieces: jobs, blocks, one worker's work, this process or a pool of Ray actors."""
