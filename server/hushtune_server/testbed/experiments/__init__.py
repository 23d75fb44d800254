"""Published experiments on this project's own code: problems, contenders, numbers and figures."""
