"""What the commands about feedback do: inspect it, find criteria in it, collect it, and manage a store of it."""
