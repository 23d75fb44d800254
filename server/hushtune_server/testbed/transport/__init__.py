"""What does the transport cost, beside named peers in the same run, and how many clients does a coordinator bear?"""
