"""What a policy is: its algorithm, its settings, its network, and what it sees."""
