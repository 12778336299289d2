"""How launch/install_horovod builds Horovod: what is edited, what is found, how it is compiled and kept, the check.

Standard library only: it runs before anything is installed.
"""
