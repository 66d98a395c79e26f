"""Not there: no test that is selected uses it."""

columns = connection = management = models = None
