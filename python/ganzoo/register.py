"""Classes that are known by the names that users type."""

from ganzoo.errors import ArgumentError, Error


class Register:
    """Classes of a `kind`, such as variants, in `classes` by the names that users give as `argument`. A class has its own name in `attribute`."""

    def __init__(self, kind, argument, attribute):
        self.kind, self.argument, self.attribute = kind, argument, attribute
        self.classes = {}

    def register(self, name):
        """Class decorator: makes a class known by the name that users type. A name can be taken once."""

        def add(cls):
            if name in self.classes:
                raise Error(f"a {self.kind} named {name} is already registered.")
            setattr(cls, self.attribute, name)
            self.classes[name] = cls
            return cls

        return add

    def names(self):
        """The names of all that are registered, in alphabetical order."""
        return sorted(self.classes)

    def named(self, name):
        """The registered class of that name. Raises `ArgumentError` for an unknown one."""
        if name not in self.classes:
            raise ArgumentError(self.argument, f"among {', '.join(self.names())}", repr(name))
        return self.classes[name]
