"""ONNX graph -> ONNX graph. Knows onnx, onnx-graphsurgeon and numpy, never a runtime.

Layers, lowest first: geometry -> row maps, operators, proof -> graph, shapes -> memory -> regions
-> planner -> fragment, emission -> rewrite.
"""
