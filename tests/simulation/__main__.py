"""Every kind of world one after the other: ``python -m tests.simulation 0 10000 --jobs 2``. Exits with 1 if a law was broken."""

import sys

from tests.simulation import campaign, coordination, delivery, secagg
from tests.simulation.many import arguments, run

KINDS = (coordination.KIND, coordination.ADDS, campaign.KIND, secagg.KIND, delivery.KIND)

if __name__ == "__main__":
    options = arguments(__doc__).parse_args()
    seeds = range(options.first, options.first + (options.count or 1))
    sys.exit(max(run(kind, seeds, jobs=options.jobs) for kind in KINDS))
