"""How many generated digits a classifier of the real ones recognises.

The classifier is a logistic regression on the 64 pixels, fitted to a random 70 % of scikit-learn's digits. It is a
plain and cautious judge: of the real digits held out from it it calls about seven in ten with p ≥ 0.9, of uniform
noise about one in twenty, so a share is to be read beside that of the held-out digits, which `DigitJudge.held_out`
gives.
"""

from ganzoo.data.digits import digits

CONFIDENT = 0.9
SHARE_OF_A_CLASS = 0.02


class DigitJudge:
    """Fits the classifier, which takes under a second, and judges images with it."""

    def __init__(self):
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import train_test_split

        images, labels = digits()
        train, self._held_out, train_labels, _ = train_test_split(
            images, labels, test_size=0.3, random_state=0, stratify=labels
        )
        self._classifier = LogisticRegression(max_iter=1000).fit(_features(train), train_labels.numpy())

    def judge(self, images):
        """Judges images (N, 1, 8, 8) with pixels in [−1, 1].

        Returns `recognised`, the share that is classified with p ≥ 0.9, in [0, 1], and `classes`, how many of the
        ten digits at least 2 % of the images are classified as.
        """
        probabilities = self._classifier.predict_proba(_features(images))
        confidence, classes = probabilities.max(1), probabilities.argmax(1)
        shares = [(classes == digit).mean() for digit in range(10)]
        return {
            "recognised": float((confidence >= CONFIDENT).mean()),
            "classes": sum(bool(share >= SHARE_OF_A_CLASS) for share in shares),
        }

    def held_out(self):
        """The same figures for the real digits that the classifier was not fitted to."""
        return self.judge(self._held_out)


def _features(images):
    return (images.flatten(1).numpy() + 1) / 2
