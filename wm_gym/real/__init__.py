"""The real world: robosuite behind the same contract as the imagined one."""
