"""*natural*: are neural ODEs robust by nature?"""
