"""The pipeline of ICMP: echo requests decided, sent onward, answered; all else is refused."""
