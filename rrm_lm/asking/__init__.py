"""The page of `rrm-lm ask`, on which people compare, criticize, correct and write, and its server.

`app` has the addresses, `guard` what every request passes first, `desk` who is asked what, `forms` answers from forms,
`text` hostile text made visible, `items` and `sampling` what is asked about, `training` reward models that are trained
meanwhile, `overview` the numbers for who asks. An optional extra, imported by its command only.
"""
