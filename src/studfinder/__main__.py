"""python -m studfinder"""

from studfinder.cli import main

main()
