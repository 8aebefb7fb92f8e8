"""One unit of work each: `run(spec, inputs, out, ctx)`. torch and diffusers, no ray."""
