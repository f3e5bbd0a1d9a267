"""What one process shows of the whole system: requests to the other processes, the overview, and orders explained."""
