"""SeqIO registrations: tasks and mixtures, nothing else."""
