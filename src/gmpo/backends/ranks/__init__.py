"""A learner and a sampler spread over processes: FSDP2 shards the models, a driver holds the batch and joins what comes
back.

`rank` is one of the processes, `ray_ranks` starts and watches them, `learner` and `sampler` are the driver's handles.
"""
