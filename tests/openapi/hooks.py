"""Bends what schemathesis generates where JSON Schema and what it describes disagree.

A schema's `integer` includes 1.0; CloudEvents (JSON format, 3.1.1) and most parsers mean digits alone.
"""

import schemathesis


def digits(value):
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [digits(item) for item in value]
    if isinstance(value, dict):
        return {name: digits(item) for name, item in value.items()}
    return value


@schemathesis.hook
def map_body(context, body):
    return digits(body)
