"""The container: what runs trainer and syncd side by side, and ends with the trainer's exit code.

    launcher     runs supervisord in this process, reports, exits (`python -m syncd.container`)
    train        what supervisord starts as the trainer: adds the arguments, then becomes it
    keeper       event listener: restarts after a crash, flushes at the end, shuts down
    sync_plugin  `supervisorctl sync`: the health of the copies
    report       the few lines a person reads at the end
    instance     stops or destroys the rented machine, where ON_FINISH asks for it
    rundir       the files by which these tell each other how things stand
    probe        asks syncd for its status, as a child process

Nothing here imports a cloud SDK, torch, or any other part of syncd: what they need to know they
ask by command.
"""
