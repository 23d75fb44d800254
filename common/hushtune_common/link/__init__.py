"""The wiretap link: physics, coding points and secrecy designs."""
