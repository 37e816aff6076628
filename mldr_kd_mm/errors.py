"""The one exception that stands for a mistake of the user's."""


class ConfigError(ValueError):
    """A mistake that the user can mend in the config.

    Its message is one line that names the field, the value and what would be right, so that the
    command line tools can print it instead of a traceback.
    """
