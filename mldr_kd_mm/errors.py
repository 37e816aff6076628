"""The one exception that stands for a mistake of the user's, and a check that raises it."""


class ConfigError(ValueError):
    """A mistake that the user can mend in the config.

    Its message is one line that names the field, the value and what would be right, so that the
    command line tools can print it instead of a traceback.
    """


def check_positive(**fields: int) -> None:
    """Check sizes and counts by the names of their fields.

    Raises:
        ConfigError: If one is not a whole number of 1 or more.
    """
    for field, value in fields.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f'{field}={value!r}: must be a whole number of 1 or more')
