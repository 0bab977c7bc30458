"""Shows where the time of some steps of a training went: `slm-jax profile MODEL_DIR`.

The training has to have been asked for it: `--gin.PROFILE_STEPS=(10,15)` profiles five steps, on every host. Shown are,
of each host and device, the operations that took most of the time, without what is within them. The files can also be
opened in Perfetto (*.trace.json.gz) and in XProf (the folder).
"""

import argparse
import sys
from collections.abc import Sequence

from slm_jax import cli, paths


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='slm-jax profile', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('model_dir', metavar='MODEL_DIR', help='what MODEL_DIR was in training')
    args = parser.parse_args(argv)
    from slm_jax.training import profiles

    try:
        print(profiles.describe(paths.path(args.model_dir)))
    except (ValueError, OSError) as error:
        return cli.fail('profile', error)
    return 0


if __name__ == '__main__':
    sys.exit(main())
