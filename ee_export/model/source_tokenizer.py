def text_encoding(*a, **k):
    raise NotImplementedError
