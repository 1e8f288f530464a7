"""The shipped tools, `function(args, context) -> JSON value`, named `toolbox.module:function`.

Standard library only: the sandbox makes this folder alone importable, under the name `toolbox`.
"""
