"""Sets of stills with lesion boxes: COCO files, and the public sets as their authors publish them."""
