def fragments(summary):
    return {}
