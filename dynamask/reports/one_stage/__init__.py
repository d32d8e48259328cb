"""The tables of SODAR as reports on one-stage weights: SOLO, SOLOv2 and SODAR, several seeds of each."""
