"""``python -m sensitune`` is ``sensitune``, but for the time it takes to import the library first."""

import sys

from sensitune_command import main

sys.exit(main())
