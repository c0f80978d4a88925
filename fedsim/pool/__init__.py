"""Who computes, and in which pieces: a round is cut into jobs, jobs into blocks, and workers answer jobs.

Workers are this process or a pool of Ray actors; both give the same bits. The pool knows no kind of run: it is handed
clients with their states and returns what they sent, and does not know what a server or a peer does with it.
"""
