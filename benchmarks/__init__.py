"""Speed and memory of fused_logistic against its rivals: ``python -m benchmarks --help``.

=============  =========================================================================================================
``cases``      what a case is, and the registry that the files with cases add theirs to
``providers``  the cases of the elementwise loss: ours, the rivals, and the memory limit
``focal``      those of the losses that give less weight to what is classified well
``linear``     those of the whole layer in its three shapes
``pairs``      that of the loss of pairs
``timing``     the clock: all candidates in turn, medians and quartiles; CUDA by events
``memory``     the peak of one call, each in a process of its own
``run``        the command line: runs the cases, writes the CSV, draws the pictures
``results``    the CSV, in Liger-Kernel's columns
``report``     where we lose: rivals that are faster, targets that are missed
``plot``       pictures from a CSV
``variants``   the loss with a malloc that keeps its blocks, and with smaller instruction sets
``exactness``  the errors against 50-digit references
``readme_table``  the tables of README.md from the committed CSV files
=============  =========================================================================================================
"""
