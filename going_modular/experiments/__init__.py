"""The measurements behind the notebooks, the README and its pages.

What the notebooks measure:

    growth            01 to 07: a model that grows, and a table of what each part adds
    recipe_parts      11: what each part of a training recipe adds
    folds             11 and README: from scratch or fine-tuned, compared by 5 folds
    claims            13: the paper's claims in miniature

Our pretrained ViT:

    pretrain          how it was made, from drawn dishes
    transfer          README and its card: what it is worth on 300 images

Weights of others:

    architectures     docs/results/architectures.md: which of timm's ViTs become ours

Large trainings:

    costs             docs/scaling_out.md: memory and hours on many GPUs

What they share:

    cross_validation  the 300 images, dealt into five folds
    sweeps            many trainings, one line of JSON for each
    command_line      options, errors in one line, and Ctrl-C
    results/          the lines of all sweeps; docs/results/README.md explains them
"""
