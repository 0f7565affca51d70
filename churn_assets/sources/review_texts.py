"""Review texts of the synthetic shop: what a customer in a given mood writes, from a grammar.

The mood shows in the share of praise, and each sentence is about one topic with words of its own,
so that a sentiment score and a topic model find what is there to find.
"""

import math
import random

# Phrases are separated by semicolons. Adjectives are in the VADER lexicon, so that a sentiment
# score can find them; each topic has words of its own, so that a topic model can find it: subjects,
# and remarks that judge nothing.
GOOD = "great;good;excellent;perfect;lovely;wonderful;nice;fantastic;superb;amazing;pleasant;fine"
BAD = "bad;terrible;awful;poor;horrible;disappointing;dreadful;annoying;miserable;unpleasant;lousy"
TOPICS = (  # subjects|remarks
    "the delivery was;the courier was;shipping was;tracking of the parcel was"
    "|it came on a Tuesday;left with a neighbour;two days on the road",
    "the price is;the discount was;value for money is;the voucher deal was"
    "|others charge the same;compared with last year;I paid by card",
    "the quality is;the material feels;the workmanship is;the stitching looks"
    "|after some weeks of use;washed it twice;seen from close up",
    "the fit is;the size is;the cut is;the length is"
    "|I usually take medium;I measured it before;one size up from usual",
    "customer service was;the hotline was;the chat agent was;the email reply was"
    "|I called on Monday;with a ticket number;they asked for photos",
    "the packaging was;the box was;the wrapping was;the padding was"
    "|mostly cardboard and paper;with a lot of tape;taller than a shoebox",
    "the manual is;assembly was;installation was;the instructions are"
    "|it took an hour;twelve screws and a key;with the app on my phone",
    "the colour is;the design is;the pattern is;the shape is"
    "|next to the sofa;a bit darker than pictured;my sister has the same",
)
NOUNS = "jacket;lamp;backpack;kettle;desk;sweater;blanket;watch;mug;tent;keyboard;scarf;chair;pan"
OPENINGS = (
    "Bought the {noun} for my {who}.;My second {noun} from this shop.;"
    "Ordered this {noun} for the {season}.;This {noun} replaces an old one.;"
    "We were looking for a {noun} for a while."
)
WHO = "mother;brother;partner;daughter;office;garden;flat;neighbour"
SEASONS = "winter;summer;holidays;weekend;spring;party"
INTENSIFIERS = ";;very ;really ;quite ;extremely ;so "
GLAD = "I love it.;Happy to recommend it.;Would gladly buy it again.;Thanks!"
SORRY = "I regret it.;Very disappointed.;What a waste.;I hate to send it back."
PLAIN = "It does what it should.;That is all.;We will see how it goes.;"


def review_text(rng: random.Random, product: int, mood: float) -> str:
    """8 to 60 words about one to three topics; the better the mood, the more praise."""

    def one_of(phrases: str) -> str:
        return rng.choice(phrases.split(";"))

    def pleased() -> bool:
        return rng.random() < 1 / (1 + math.exp(0.4 - 1.5 * mood))

    nouns = NOUNS.split(";")
    opening = one_of(OPENINGS).format(
        noun=nouns[product % len(nouns)], who=one_of(WHO), season=one_of(SEASONS)
    )
    sentences = [opening]
    for topic in rng.sample(TOPICS, rng.choice((1, 1, 2, 2, 3))):
        subjects, remarks = topic.split("|")
        praise, negated = pleased(), rng.random() < 0.15
        adjective = one_of(GOOD if praise != negated else BAD)
        judgement = f"not {adjective}" if negated else one_of(INTENSIFIERS) + adjective
        sentence = f"{one_of(subjects)} {judgement}, {one_of(remarks)}."
        sentences.append(sentence[0].upper() + sentence[1:])
    sentences.append(one_of(PLAIN if rng.random() < 0.4 else GLAD if pleased() else SORRY))
    return " ".join(sentences).strip()
