"""Plugins for MatDeepLearn and MatterTune: the only folders that name a host. Nothing else imports them.

Each host's folder holds ``status.py`` with ``problems(root) -> list[str]``, what of the installed host would not work,
and ``registered() -> list[str]``, the names that it registers there. ``physpre hosts`` prints both.
"""
