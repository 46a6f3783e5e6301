"""The report as one HTML file, and its plots: what cutting a model does, for people to look at.

    subject      what the page is about: a rewrite, made or read back, verified and measured
    figures      what was measured and verified before, read from JSON
    provenance   whether a rewritten file was made of the model at hand
    content      the page as plain data
    summary      its head: a sentence, the verification
    cards        its figures, each with how it is known
    regions      how each region is cut, in rows
    holders      what holds the peak, and what was left alone
    timeline     memory over the run
    drawing      the graph, what is cut in boxes
    render       that data in one file: escaped, with all it needs, without a request
    plots        the same curves as SVG and PNG

Every figure is that of the JSON report, or was measured.
"""
