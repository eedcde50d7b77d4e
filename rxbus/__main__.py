from rxbus.cli import main

main()
